from typing import Any
Tiling=Any
def padded(n): 
    p=16
    while p<n: p*=2
    return p
