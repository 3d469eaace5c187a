#!/bin/bash
# Runs a command as an ordinary user. Not root: just runs it. Root: as the owner of the checkout, or as nobody where
# that is root too, without any capability, in a directory of that user's own that is kept (cached photographs).
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

environment=("HOME=$home" "USER=$(id -nu "$uid" 2>/dev/null || echo "$uid")" "TMPDIR=/tmp" "PATH=/usr/local/bin:/usr/bin:/bin")
for name in LANG LC_ALL TERM COLUMNS CI NO_COLOR "${!AIFLOW_@}"; do
    if [ -n "${!name:-}" ]; then environment+=("$name=${!name}"); fi
done
command=$1
case $command in */*) command=$(realpath -s "$command") ;; esac # .venv/bin/python stays what it is: a link
shift
cd "$home"
printf 'aiflow: running as user %s in %s\n' "$(id -nu "$uid" 2>/dev/null || echo "$uid")" "$home"
# env stands behind setpriv, which still has root's capabilities when it looks its command up
exec setpriv --reuid="$uid" --regid="$gid" --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs \
    env -i "${environment[@]}" "$command" "$@"
