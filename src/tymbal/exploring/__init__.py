"""What the page of `tymbal explore` shows: everything but `app` is plain functions that need no Gradio."""
