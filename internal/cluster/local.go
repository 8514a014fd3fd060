package cluster

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// isLocal tells whether a host names this machine only, a link-local address or a
// metadata service of a cloud, in any of the spellings that resolvers accept.
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
	ip = carried(ip.WithZone(""))
	return ip.IsLoopback() || ip.IsUnspecified() || ip.IsLinkLocalUnicast() || ip.IsMulticast() || slices.Contains(metadata, ip)
}

// metadata are services that give out secrets of a machine and are not link-local: of AWS,
// Google, Alibaba, Azure and Oracle.
var metadata = []netip.Addr{netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("fd20:ce::254"), netip.MustParseAddr("100.100.100.200"),
	netip.MustParseAddr("168.63.129.16"), netip.MustParseAddr("192.0.0.192")}

// carriers are IPv6 networks whose addresses carry one of IPv4, and at which byte: NAT64
// (RFC 6052), 6to4 (RFC 3056), and IPv4-compatible ones (RFC 4291, 2.5.5.1).
var carriers = []struct {
	net netip.Prefix
	at  int
}{{netip.MustParsePrefix("64:ff9b::/96"), 12}, {netip.MustParsePrefix("2002::/16"), 2}, {netip.MustParsePrefix("::/96"), 12}}

// carried is the address of IPv4 that one of IPv6 leads to, or ip itself.
func carried(ip netip.Addr) netip.Addr {
	ip = ip.Unmap()
	for _, c := range carriers {
		if c.net.Contains(ip) && ip != netip.IPv6Loopback() {
			b := ip.As16()
			return netip.AddrFrom4([4]byte(b[c.at:]))
		}
	}
	return ip
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
