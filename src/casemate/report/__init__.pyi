"""The public names."""

from . import palette as palette
from .charts import COLOURS as COLOURS
from .charts import MARKERS as MARKERS
from .charts import PUBLISHED as PUBLISHED
from .charts import Figure as Figure
from .charts import canvas as canvas
from .charts import estimate_line as estimate_line
from .charts import finished as finished
from .charts import legend_below as legend_below
from .charts import percent_axis as percent_axis
from .charts import picture as picture
from .charts import plain_ticks as plain_ticks
from .charts import styled as styled
from .page import template_environment as template_environment
