"""What the page of `tymbal explore` shows: everything but `page` is plain functions that need no Gradio."""
