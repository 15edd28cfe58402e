"""`aha cost page`: the price book, the models and own evaluations as one page of pictures, and as CSV."""

from aha.estimate.page.document import CostPage, make_page
from aha.estimate.page.picture import Column, Drawing, Gap, Picture

__all__ = ["Column", "CostPage", "Drawing", "Gap", "Picture", "make_page"]
