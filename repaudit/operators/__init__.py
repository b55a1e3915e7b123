"""The diffusion operator in its dense, sparse and landmark forms, and many of them at a time.

All forms are imported together: :meth:`repaudit.DiffusionOperator.from_matrix` chooses among them.
"""

from repaudit.operators import landmark, operator, sparse

__all__ = ["landmark", "operator", "sparse"]
