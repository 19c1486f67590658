"""The pre-training methods, one file each. To add one, write its file and add a line here."""

from __future__ import annotations

from simclr.methods.barlow import Barlow
from simclr.methods.base import Method
from simclr.methods.byol import BYOL
from simclr.methods.dcl import DCL
from simclr.methods.distill import Distill
from simclr.methods.emp import EMP
from simclr.methods.imix import IMix
from simclr.methods.margin import Margin
from simclr.methods.moco import MoCo
from simclr.methods.nt_logistic import NTLogistic
from simclr.methods.simclr import SimCLR
from simclr.methods.simsiam import SimSiam
from simclr.methods.supcon import SupCon
from simclr.methods.supervised import Supervised
from simclr.methods.vicreg import VICReg

METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "nt_logistic": NTLogistic,
    "margin": Margin,
    "dcl": DCL,
    "supcon": SupCon,
    "supervised": Supervised,
    "byol": BYOL,
    "simsiam": SimSiam,
    "barlow": Barlow,
    "vicreg": VICReg,
    "emp": EMP,
    "moco": MoCo,
    "distill": Distill,
    "imix": IMix,
}
