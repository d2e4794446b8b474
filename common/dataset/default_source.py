"""What a script finds without --data: nothing to add, or --data synthetic if it must go on.

    python -m common.dataset.default_source

For `make run`: where CIFAR-10 can't be downloaded, one loud line says so, not one a script.
"""

import os

from common.dataset.load import load
from common.errors import InputError

if __name__ == "__main__":
    try:
        source = load(os.environ.get("CIFAR10_DIR") or None).source
    except InputError:  # the first script says what is wrong with $CIFAR10_DIR
        source = ""
    print("--data synthetic" if source.startswith("synthetic") else "")
