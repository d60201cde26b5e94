"""``python -m batch_llm``."""

from __future__ import annotations

import sys

from batch_llm._entry import main

sys.exit(main())
