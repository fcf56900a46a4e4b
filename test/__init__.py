"""The paper's evaluations, one command a row; the unit tests are in tests/."""
