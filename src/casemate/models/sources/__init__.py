"""Models from wherever users have them: one module for each format, and the facts that each of them states."""

from casemate.models.sources.facts import ModelFacts as ModelFacts
from casemate.models.sources.opened import OpenedModel as OpenedModel
from casemate.models.sources.opening import open_model as open_model
