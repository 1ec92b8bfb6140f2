# made by .ci/wings.py
from vemi_kit import lazy_front

__getattr__, __dir__ = lazy_front(__name__)
