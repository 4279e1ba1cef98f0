"""ONNX files: ``export`` writes a graph with its state, ``load`` reads one. ``onnx`` is imported when they are used."""
