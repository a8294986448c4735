"""The problems of the cases: fields, data and reference solutions."""
