"""One page that shows what came out: its parts, charts, pictures and sounds."""
