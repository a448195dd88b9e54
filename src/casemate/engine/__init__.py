"""Running tasks and storing their results: task keys, the store on disk with its locks, plans and how they run.

These names are provisional.
"""

from casemate.engine.code_version import code_version as code_version
from casemate.engine.pieces import Pieces as Pieces
from casemate.engine.pieces import study_of as study_of
from casemate.engine.plan import Plan as Plan
from casemate.engine.plan import is_current as is_current
from casemate.engine.plan import make_plan as make_plan
from casemate.engine.pool import Compute as Compute
from casemate.engine.pool import Deaths as Deaths
from casemate.engine.pool import Engine as Engine
from casemate.engine.ray_cluster import Ray as Ray
from casemate.engine.run import OnArtifact as OnArtifact
from casemate.engine.run import run_plan as run_plan
from casemate.engine.store import Artifact as Artifact
from casemate.engine.store import Store as Store
from casemate.engine.store import default_store as default_store
from casemate.engine.task import Context as Context
from casemate.engine.task import Producer as Producer
from casemate.engine.task import ProducerFn as ProducerFn
from casemate.engine.task import Task as Task
from casemate.engine.task import ordered as ordered
from casemate.engine.workers import Processes as Processes
