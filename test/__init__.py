"""The paper's evaluations, one thin file a method. (Unit tests live in tests/.)"""
