# SPDX-License-Identifier: Apache-2.0
"""The example of the local state file's description, with addresses of the test's choice."""

from __future__ import annotations

_MESH = """
workloads:
  - uid: demo//Pod/shop/cart-0
    name: cart-0
    namespace: shop
    serviceAccount: cart
    trustDomain: cluster.local
    clusterId: demo
    workloadName: cart
    workloadType: deployment
    canonicalName: cart
    canonicalRevision: v1
    workloadIps: ["{cart}"]
    network: ""
    node: node-a
    protocol: HBONE
    locality: {{region: eu, zone: eu-1, subzone: ""}}
    services: {{}}
  - uid: demo//Pod/shop/prices-0
    name: prices-0
    namespace: shop
    serviceAccount: prices
    trustDomain: cluster.local
    clusterId: demo
    workloadName: prices
    workloadType: deployment
    canonicalName: prices
    canonicalRevision: v1
    workloadIps: ["{prices}"]
    network: ""
    node: node-b
    protocol: HBONE
    locality: {{region: eu, zone: eu-2, subzone: ""}}
    authorizationPolicies: ["shop/prices-callers"]
    services:
      "shop/prices.shop.svc.cluster.local": {{80: 8080}}
{more}services:
  - name: prices
    namespace: shop
    hostname: prices.shop.svc.cluster.local
    vips: ["/10.96.0.50"]
    ports: {{80: 8080}}
    canonical: true
    loadBalancer:
      routingPreferences: [Network, Region, Zone]
      mode: Failover
      healthPolicy: OnlyHealthy
policies:
  - name: prices-callers
    namespace: shop
    scope: WorkloadSelector
    action: Allow
    dryRun: false
    rules:
      -
        -
          - principals: [!Exact cluster.local/ns/shop/sa/cart]
        -
          - destinationPorts: [8080]
"""


def mesh(cart: str, prices: str, more: str = "") -> str:
    """A client, a server behind a service, the policy between them; `more` adds workloads."""
    return _MESH.format(cart=cart, prices=prices, more=more)
