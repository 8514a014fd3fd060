package cluster

import (
	"net/netip"
	"strconv"
	"strings"
)

// isLocal tells whether a host names this machine only, or a link-local
// address (the metadata services of clouds among them), in any of the
// spellings that resolvers accept.
func isLocal(host string) bool {
	h := strings.ToLower(strings.TrimSuffix(host, "."))
	if h == "localhost" || strings.HasSuffix(h, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(h)
	if err != nil {
		var ok bool
		if ip, ok = oldIPv4(h); !ok {
			return false
		}
	}
	ip = ip.Unmap().WithZone("")
	return ip.IsLoopback() || ip.IsUnspecified() || ip.IsLinkLocalUnicast() || ip.IsMulticast()
}

// oldIPv4 reads what inet_aton takes beside dotted decimals: 1 to 4 parts, each
// decimal, octal or hexadecimal, the last filling the rest (0x7f000001, 127.1).
func oldIPv4(h string) (netip.Addr, bool) {
	parts := strings.Split(h, ".")
	if len(parts) > 4 {
		return netip.Addr{}, false
	}
	var v uint64
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 0, 64)
		if err != nil || strings.ContainsAny(p, "_") {
			return netip.Addr{}, false
		}
		if i == len(parts)-1 {
			rest := 8 * (4 - i)
			if n >= 1<<rest {
				return netip.Addr{}, false
			}
			v = v<<rest | n
		} else {
			if n > 255 {
				return netip.Addr{}, false
			}
			v = v<<8 | n
		}
	}
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}), true
}
