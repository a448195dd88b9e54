"""Experiment trackers as observers: MLflow (extra `mlflow`) and TensorBoard (extra `tensorboard`).

    with casemate.tracking.MLflow(experiment="robustness") as tracker:
        casemate.evaluate(model, images, eps="8/255", observer=casemate.observers(casemate.progress_bars(), tracker))

They take what the library passes to `casemate.progress.TrackingObserver`, and change no result.
"""

from casemate.progress import Tracked as Tracked
from casemate.progress import TrackingObserver as TrackingObserver
from casemate.progress import observers as observers
from casemate.progress import part_of as part_of
from casemate.tracking.mlflow_run import MLflow as MLflow
from casemate.tracking.tensorboard_run import TensorBoard as TensorBoard
