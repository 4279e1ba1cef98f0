from twofold.base.recent import Recent


def test_what_was_not_asked_for_lately_is_forgotten():
    table = Recent(2)
    table.put("a", 1)
    table.put("b", 2)
    assert table.get("a") == 1
    table.put("c", 3)
    assert [table.get(k) for k in "abc"] == [1, None, 3] and len(table) == 2
