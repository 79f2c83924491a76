"""Does a judge say Yes too easily, or No? Pairs of texts whose right verdict is known."""
