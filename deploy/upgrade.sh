#!/bin/sh
# Replaces the two gateways behind the balancer (profile `balanced`) in turn, so that callers notice nothing:
#   edit .env, then: docker compose build && deploy/upgrade.sh
# COMPOSE is the command, unless it is set `docker compose` where docker has it, else docker-compose; COMPOSE_FILE names
# the files, where there are overlays.
set -eu
if docker compose version >/dev/null 2>&1; then compose="docker compose"; else compose=docker-compose; fi
compose=${COMPOSE:-$compose}

healthy() {
    container=$($compose ps -q "$1")
    [ -n "$container" ] && [ "$(docker inspect -f '{{.State.Health.Status}}' "$container")" = healthy ]
}

await() {
    left=120
    until healthy "$1"; do
        left=$((left - 1))
        if [ $left -eq 0 ]; then
            echo "$1 is not healthy after two minutes; the other gateway serves on. $compose logs $1 says why" >&2
            exit 1
        fi
        sleep 1
    done
    sleep 2 # until the balancer has seen it too
}

order="gateway-b gateway"
if ! healthy gateway; then order="gateway gateway-b"; fi # who is down costs nothing, and the other serves meanwhile
for gateway in $order; do
    if [ $gateway = gateway-b ]; then other=gateway; else other=gateway-b; fi
    await $other
    $compose up -d --no-deps $gateway
    await $gateway
    echo "$gateway runs what .env says"
done
