"""The teacher's hidden states on disk: asked for once, mapped ever after.

`identity` says whose hidden states they are; a `segment` is one append-only pair of files, a
`store` a folder of them; `end` is a student's end of the ring that asks only for what the folder
lacks; `capture` fills a folder without training, and `report` says what that came to.
"""
