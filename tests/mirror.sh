# shellcheck shell=bash
# Tells where Debian is to be had, for those who make roots of it.

# Where apt on this machine gets an archive from ("Debian", "Debian-Security"), or the given URI.
mirror_for() {
    local label=$1 otherwise=$2 uri
    # shellcheck disable=SC2016  # apt's own placeholders
    uri=$(apt-get indextargets --format '$(LABEL)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        sed -n "s/^$label|//p" | head -n 1) || true
    printf '%s\n' "${uri:-$otherwise}"
}
