"""Data sets: where they come from, how they are fed to training, how they are drawn.

    digits = flowjax.data.load("digits")                 # a Dataset: .images .labels .class_names
    batches = flowjax.data.batches(digits, 64, seed=0)   # an endless Grain iterator, resumable
    batch = flowjax.data.place(next(batches), flowjax.data.mesh())

Importing this package costs nothing beyond NumPy and JAX; scikit-learn, Pillow, Grain, matplotlib and
tensorflow-datasets load in the functions that use them.
"""

from ._dataset import Dataset as Dataset
from ._pictures import check_picture_path as check_picture_path
from ._pictures import contact_sheet as contact_sheet
from ._pictures import drawable as drawable
from ._pictures import save_picture as save_picture
from ._pipeline import batches as batches
from ._placement import AXIS as AXIS
from ._placement import ROWS as ROWS
from ._placement import choose_rows_over as choose_rows_over
from ._placement import mesh as mesh
from ._placement import place as place
from ._placement import place_rows as place_rows
from ._prepare import check_vacant as check_vacant
from ._prepare import prepare as prepare
from ._records import Records as Records
from ._records import stream as stream
from ._sources import SOURCES as SOURCES
from ._sources import load as load
