"""The page of `tymbal explore`: all modules but `app` are plain functions that need no Gradio."""
