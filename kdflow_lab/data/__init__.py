"""Data: from a file, a hub id or rows in a notebook to the micro-batches of every rank.

`sources.load` reads rows, `tokens.tokenize` makes them token ids with a response mask,
`plan.DataPlan` says which rows a rank runs when, `batches.pack` lays them behind one another.
"""
