"""The pure loss functions, one named after each method."""

from dskd.losses.deep_supervision import dskd, dskd_terms, feature_loss
from dskd.losses.logits import LOGIT_LOSSES, ce, dist, dkd, kd
from dskd.losses.maps import at

__all__ = ["LOGIT_LOSSES", "at", "ce", "dist", "dkd", "dskd", "dskd_terms", "feature_loss", "kd"]
