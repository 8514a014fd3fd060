package httpd

import (
	"net/http"
	"net/url"
	"slices"

	"github.com/dialring/dialring/internal/config"
)

// Origins are the browser origins that may talk to a listener.
type Origins struct {
	Allowed []string
	// Dev also allows every page served by this machine.
	Dev bool
}

// Allow tells whether a request may come from where it says it does: without
// the header Origin it is no page's of another origin, else the origin must be
// on the list to the letter. The origin "null" never is.
func (o Origins) Allow(r *http.Request) bool {
	list := r.Header.Values("Origin")
	if len(list) == 0 {
		return true
	}
	if len(list) > 1 {
		return false
	}
	origin := list[0]
	if slices.Contains(o.Allowed, origin) {
		return true
	}
	u, err := url.Parse(origin)
	if err != nil || u.User != nil || u.Scheme != "http" && u.Scheme != "https" || u.Scheme+"://"+u.Host != origin {
		return false
	}
	return o.Dev && config.IsLoopback(u.Hostname())
}

var varyOrigin = []string{"Origin"} // net/http only reads it

// CORS sets the headers by which a browser lets an allowed page read the
// answer.
func (o Origins) CORS(h http.Header, r *http.Request) {
	h["Vary"] = varyOrigin
	if origin := r.Header.Get("Origin"); origin != "" && o.Allow(r) {
		h.Set("Access-Control-Allow-Origin", origin)
		h.Set("Access-Control-Expose-Headers", "Retry-After")
	}
}
