# SPDX-License-Identifier: Apache-2.0
"""Programs of other people against every engine."""
