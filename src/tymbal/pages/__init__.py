"""Building blocks of every page that Tymbal writes or serves: HTML, charts, pictures."""
