package locator

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/wire"
)

// apiKeys are the digests of the keys that services may use.
type apiKeys [][sha256.Size]byte

func newAPIKeys(keys []string) apiKeys {
	var l apiKeys
	for _, k := range keys {
		l = append(l, sha256.Sum256([]byte(k)))
	}
	return l
}

// has compares digests, all of them, in constant time.
func (l apiKeys) has(key string) bool {
	d := sha256.Sum256([]byte(key))
	found := 0
	for i := range l {
		found |= subtle.ConstantTimeCompare(d[:], l[i][:])
	}
	return found == 1
}

// require lets only callers with an API key through.
func (l apiKeys) require(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if key, ok := httpd.Bearer(c.Request()); !ok || !l.has(key) {
			p := wire.NewProblem(http.StatusUnauthorized, wire.CodeUnauthorized, "an API key is missing or not known: send it as Authorization: Bearer <key>")
			p.Header = [2]string{"WWW-Authenticate", "Bearer"}
			return p
		}
		return next(c)
	}
}
