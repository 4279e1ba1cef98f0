"""twofold: one program, dynamic and static."""
