"""The tests of diffjax."""
