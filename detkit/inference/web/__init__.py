"""A detector in the browser: a page, the server that answers it, and its one worker.

Needs aiohttp, which nothing outside of this folder imports: `pip install "detkit-vision[web]"`.
"""
