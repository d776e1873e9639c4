"""What may be written: the recipe's grammar, its text with places, and its patterns. Knows no torch."""
