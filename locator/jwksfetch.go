package locator

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"

	"github.com/MicahParks/jwkset"
)

// maxJWKS bounds the document of a key set, in bytes.
const maxJWKS = 1 << 20

// jwksFetcher fetches the key set for the library, which reads what comes without a bound and
// takes any JSON for a set, an error of the issuer's too: then all keys would be gone. It lets
// through sets with a key that is good here, and of those only such keys.
type jwksFetcher struct {
	log  *slog.Logger
	base http.RoundTripper
}

// errNoKeys is of a document that is no key set, or has no key that is good here.
var errNoKeys = errors.New("it has no key that user tokens could be checked with")

// RoundTrip implements http.RoundTripper.
func (f *jwksFetcher) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := f.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxJWKS+1))
	_ = resp.Body.Close()
	switch {
	case err != nil:
		return nil, err
	case len(b) > maxJWKS:
		return nil, fmt.Errorf("it has more than %d bytes", maxJWKS)
	case resp.StatusCode == http.StatusOK: // the library refuses others
		if b, err = f.keep(b); err != nil {
			return nil, err
		}
	}
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
	return resp, nil
}

// keep takes the keys out of a set that are not good here.
func (f *jwksFetcher) keep(b []byte) ([]byte, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, fmt.Errorf("it is no JWK set: %w", err)
	}
	kept := []json.RawMessage{}
	for i, raw := range set.Keys {
		kid, why := judgeJWK(raw)
		if why == "" {
			kept = append(kept, raw)
			continue
		}
		if i < 16 { // a set has few
			f.log.Warn("a key of the JWK set is not used", "event", "jwk_unused", "kid", kid, "why", why)
		}
	}
	if len(kept) == 0 {
		return nil, errNoKeys
	}
	return json.Marshal(map[string]any{"keys": kept})
}

// judgeJWK says why a key is not good here, as readPublicKey does of one in a file; "": it is.
// The library reads it as it will in the set.
func judgeJWK(raw []byte) (kid, why string) {
	k, err := jwkset.NewJWKFromRawJSON(raw, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{})
	m := k.Marshal()
	kid = m.KID
	switch {
	case err != nil:
		var named struct{ Kid string }
		_ = json.Unmarshal(raw, &named)
		return named.Kid, err.Error()
	case kid == "":
		return "", "it has no kid, by which tokens would name it"
	case m.USE != "" && m.USE != jwkset.UseSig:
		return kid, "its use is not to sign"
	case len(m.KEYOPS) > 0 && !slices.Contains(m.KEYOPS, jwkset.KeyOpsVerify):
		return kid, "its key_ops do not have verify"
	}
	switch key := k.Key().(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return kid, ""
	case *rsa.PublicKey:
		if err := checkRSA(key); err != nil {
			return kid, err.Error()
		}
		return kid, ""
	case []byte:
		return kid, "a symmetric key has no place in a public set"
	default:
		return kid, fmt.Sprintf("a key of a kind that checks no signatures (%T)", key)
	}
}
