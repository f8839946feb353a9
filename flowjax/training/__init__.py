"""Training a velocity network: config → state → step → loop → checkpoint."""

from .config import DataConfig as DataConfig
from .config import OptimizerConfig as OptimizerConfig
from .config import TargetConfig as TargetConfig
from .config import TrainConfig as TrainConfig
from .evaluation import evaluate as evaluate
from .loop import train as train
from .presets import PRESETS as PRESETS
from .presets import preset as preset
from .run_dir import RunDirectory as RunDirectory
from .samples import TrainedNetwork as TrainedNetwork
from .samples import load_network as load_network
