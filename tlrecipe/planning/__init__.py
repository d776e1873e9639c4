"""Recipe + parameter table + data facts → Plan: every name and number resolved. Knows no torch."""
