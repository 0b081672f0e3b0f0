"""Supernets: one model whose smaller subnets share its weights, are trained together and extracted for each device."""

from bough.supernet.build import supernet
from bough.supernet.extracted import Extracted
from bough.supernet.profile import Profile
from bough.supernet.sandwich import Sandwich
from bough.supernet.subnet import Subnet
from bough.supernet.supernet import Supernet
from bough.supernet.table import SubnetRow, SubnetTable

__all__ = ["Extracted", "Profile", "Sandwich", "Subnet", "SubnetRow", "SubnetTable", "Supernet", "supernet"]
