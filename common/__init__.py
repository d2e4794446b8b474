"""The pipeline, in rooms. Imports go only down this list; `make lint` checks it.

options.py     the command line; only scripts import it
reporting/     numbers as text tables, figures and pages
inspection/    what is in the data, and what is wrong with it
training/      from a recipe to a trained network
attacks/       from images to adversarial images, and how a network stands them
dataset/       THE LOADER: from a source of images to one split in memory
networks/      THE CNN: simple_cnn.py, resnet9.py, their heads, checkpoints
metrics/       THE METRICS: from predictions to a report with intervals
files.py       the root folder, atomic writing, tables, result records
terminal.py    what a script writes to the terminal, and how it ends
errors.py      errors that a script reports in one line
"""
