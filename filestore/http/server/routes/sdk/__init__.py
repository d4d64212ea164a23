"""The Pipeline SDK's own dialects, in the exact shapes of its versions 1 and 2.

Three ways in (`forms`: v3 and v4; `multipart`: parts by signed URLs), and what is read (`files`). The same bytes by any of
them, and by a push, are one stored file.
"""
