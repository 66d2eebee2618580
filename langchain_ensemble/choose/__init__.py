"""Which models belong together, how much each counts, whether it pays: measured on a dev set."""
