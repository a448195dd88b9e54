"""The playground: a page in the browser that attacks one image at a time, on this machine only.

`explore` computes, `views` draws, `page` lays out, `server` answers. Needs the extra `play` (Gradio).
"""
