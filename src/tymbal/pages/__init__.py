"""What every page that Tymbal writes or serves is made of: HTML, charts, pictures."""
