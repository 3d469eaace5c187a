#!/bin/bash
# Runs a command as an ordinary user. Without root it just runs the command. Under root the command runs as the owner
# of the checkout, or as the user nobody where root owns it. It has no capability, and it runs in a directory of that
# user's own, which is kept (cached photographs).
#
# Usage: tools/as-user.sh COMMAND [ARGUMENT …]
set -euo pipefail
if [ "$(id -u)" -ne 0 ]; then exec "$@"; fi

checkout=$(cd "$(dirname "$0")/.." && pwd)
uid=$(stat -c %u "$checkout")
gid=$(stat -c %g "$checkout")
if [ "$uid" -eq 0 ]; then
    uid=$(id -u nobody)
    gid=$(id -g nobody)
fi
home=/var/cache/aiflow/user-$uid
mkdir -p -m 755 /var/cache/aiflow
mkdir -p -m 700 "$home"
chown "$uid:$gid" "$home"

user=$(id -nu "$uid" 2>/dev/null || echo "$uid")
environment=("HOME=$home" "USER=$user" "TMPDIR=/tmp" "PATH=/usr/local/bin:/usr/bin:/bin")
for name in LANG LC_ALL TERM COLUMNS CI NO_COLOR "${!AIFLOW_@}"; do
    if [ -n "${!name:-}" ]; then environment+=("$name=${!name}"); fi
done
command=$1
case $command in */*) command=$(realpath -s "$command") ;; esac # keeps .venv/bin/python, which is a link
shift
cd "$home"
printf 'aiflow: running as user %s in %s\n' "$user" "$home"
# env comes after setpriv, because setpriv still has root's capabilities when it looks its command up
exec setpriv --reuid="$uid" --regid="$gid" --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs \
    env -i "${environment[@]}" "$command" "$@"
