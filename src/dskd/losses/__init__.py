"""The pure loss functions, one named after each method."""

from dskd.losses.branched import byot, dsn
from dskd.losses.contrast import crd, sskd
from dskd.losses.deep_supervision import dskd, dskd_terms, feature_loss
from dskd.losses.feature_maps import at, fitnet, nst, vid
from dskd.losses.fusion import reviewkd, semckd
from dskd.losses.logits import LOGIT_LOSSES, ce, dist, dkd, kd
from dskd.losses.relations import cc, pkt, rkd, sp
from dskd.losses.reuse import simkd, srrl

__all__ = [
    "LOGIT_LOSSES",
    "at",
    "byot",
    "cc",
    "ce",
    "crd",
    "dist",
    "dkd",
    "dskd",
    "dskd_terms",
    "dsn",
    "feature_loss",
    "fitnet",
    "kd",
    "nst",
    "pkt",
    "reviewkd",
    "rkd",
    "semckd",
    "simkd",
    "sp",
    "srrl",
    "sskd",
    "vid",
]
