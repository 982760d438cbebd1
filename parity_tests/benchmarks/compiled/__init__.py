"""Tests of what compilers say: from small dumps of theirs, kept in `dumps/`."""
