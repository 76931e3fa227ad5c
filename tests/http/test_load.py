"""1,000 streaming clients at once, on made-up tokens and on the real model: nothing fails, and each
stream says what the same request says alone. load.py is the tool; this is its run in CI.

SPDX-License-Identifier: Apache-2.0"""

import os
import unittest

import load
from wire import SLOW, main

CLIENTS = int(os.environ.get("SLUICE_LOAD_CLIENTS", "1000"))


class Load(unittest.TestCase):
    def test_sim(self):
        self.assertTrue(load.run(CLIENTS, 60, SLOW))

    def test_model(self):
        self.assertTrue(load.run(CLIENTS // 4, 40, ["--device", "cpu"], seed=2))


if __name__ == "__main__":
    main()
