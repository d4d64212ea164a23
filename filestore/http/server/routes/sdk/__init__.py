"""Answer the requests of the Pipeline SDK, in the exact formats of its versions 1 and 2.

There are three ways to upload: the forms of v3 and v4 (`forms`), and parts at signed URLs (`multipart`). `files`
answers the reads. The same bytes become one stored file, whether they come in one of these ways or by a push.
"""
