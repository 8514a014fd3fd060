package locator

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/time/rate"

	"github.com/dialring/dialring/internal/config"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/wire"
)

// tokenLeeway is how much the clocks of token issuers may differ from ours.
const tokenLeeway = 60 * time.Second

// maxTokenBytes bounds a user token before anything of it is parsed.
const maxTokenBytes = 8 << 10

// userTokens checks the tokens of users. It may be used concurrently.
type userTokens struct {
	parser *jwt.Parser
	key    jwt.Keyfunc
}

// newUserTokens makes a checker of the one way that is configured; nil if none
// is, which only development mode allows. The algorithm follows from the key
// and is never taken from the token. The key set of a JWKS URL is fetched at
// once, and again, until ctx ends, while locates go on.
func newUserTokens(ctx context.Context, c *Config) (*userTokens, error) {
	var methods []string
	u := &userTokens{}
	switch {
	case c.UserJWTSecret != "":
		if len(c.UserJWTSecret) < 32 {
			return nil, config.Errorf("DIALRING_USER_JWT_SECRET has %d bytes; HS256 needs at least 32, such as from: openssl rand -base64 32", len(c.UserJWTSecret))
		}
		methods = []string{"HS256"}
		secret := []byte(c.UserJWTSecret)
		u.key = func(*jwt.Token) (any, error) { return secret, nil }
	case c.UserJWTPublicKeyFile != "":
		key, alg, err := readPublicKey(c.UserJWTPublicKeyFile)
		if err != nil {
			return nil, config.Errorf("DIALRING_USER_JWT_PUBLIC_KEY_FILE: %v", err)
		}
		methods = []string{alg}
		u.key = func(*jwt.Token) (any, error) { return key, nil }
	case c.UserJWKSURL != "":
		set, err := newJWKS(ctx, c)
		if err != nil {
			return nil, config.Errorf("DIALRING_USER_JWKS_URL: %v", err)
		}
		// A JWK fixes its own algorithm; symmetric ones have no place in a
		// public set.
		methods = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
		u.key = func(t *jwt.Token) (any, error) {
			if kid, _ := t.Header["kid"].(string); kid == "" {
				return nil, errors.New("the token names no key") // all keys would be tried, without heed to their algorithm
			}
			return set.Keyfunc(t)
		}
	default:
		return nil, nil
	}
	u.parser = jwt.NewParser(jwt.WithValidMethods(methods), jwt.WithExpirationRequired(), jwt.WithLeeway(tokenLeeway), jwt.WithStrictDecoding())
	return u, nil
}

// newJWKS makes a key set that is refreshed every hour, and when a token names
// an unknown key, then at most once in 30 s.
func newJWKS(ctx context.Context, c *Config) (keyfunc.Keyfunc, error) {
	return keyfunc.NewDefaultOverrideCtx(ctx, []string{c.UserJWKSURL}, keyfunc.Override{
		Client:            &http.Client{Timeout: 5 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		HTTPTimeout:       5 * time.Second,
		RefreshInterval:   time.Hour,
		RefreshUnknownKID: rate.NewLimiter(rate.Every(30*time.Second), 1),
		RateLimitWaitMax:  5 * time.Second, // bounds the fetch itself, too; only who names an unknown key waits
		RefreshErrorHandlerFunc: func(u string) func(context.Context, error) {
			return func(_ context.Context, err error) {
				c.Log.Warn("the JWK set cannot be fetched; going on with the last one", "event", "jwks", "url", u, "error", err)
			}
		},
	})
}

// caller is a user who locates.
type caller struct {
	user   string
	sendTo []string  // whom it may send to
	issued time.Time // its token was; zero: it does not say
}

// caller checks a token and returns whose it is.
func (u *userTokens) caller(token string) (caller, error) {
	if len(token) > maxTokenBytes {
		return caller{}, fmt.Errorf("the user token has more than %d bytes", maxTokenBytes)
	}
	var c struct {
		ticket.Claims
		SendTo []string `json:"send_to"`
	}
	if _, err := u.parser.ParseWithClaims(token, &c, u.key); err != nil {
		switch {
		case errors.Is(err, jwt.ErrTokenExpired):
			return caller{}, errors.New("the user token has expired")
		case errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
			return caller{}, errors.New("the user token has no exp")
		}
		return caller{}, errors.New("the user token is not valid")
	}
	if c.Subject == "" {
		return caller{}, errors.New("the user token has no sub, which is the user id")
	}
	if strings.ContainsRune(c.Subject, utf8.RuneError) { // what encoding/json makes of an escape that is no character
		return caller{}, errors.New("the sub of the user token is not valid UTF-8")
	}
	if err := wire.CheckUser(c.Subject); err != nil {
		return caller{}, fmt.Errorf("the sub of the user token: %w", err)
	}
	if err := wire.CheckSendTo(c.SendTo); err != nil {
		return caller{}, fmt.Errorf("the claim %w", err)
	}
	who := caller{user: c.Subject, sendTo: c.SendTo}
	if c.IssuedAt != nil {
		who.issued = c.IssuedAt.Time
	}
	return who, nil
}

// readPublicKey reads a PEM file with one public key, or a certificate, and
// the algorithm that fits it.
func readPublicKey(file string) (key any, alg string, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, "", err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, "", fmt.Errorf("%s has no PEM block", file)
	}
	if block.Type == "CERTIFICATE" {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", file, err)
		}
		key = cert.PublicKey
	} else if key, err = x509.ParsePKIXPublicKey(block.Bytes); err != nil {
		if key, err = x509.ParsePKCS1PublicKey(block.Bytes); err != nil {
			return nil, "", fmt.Errorf("%s has no public key (BEGIN PUBLIC KEY)", file)
		}
	}
	switch k := key.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return nil, "", fmt.Errorf("%s: an RSA key of %d bits; at least 2048 are needed", file, k.N.BitLen())
		}
		return k, "RS256", nil
	case *ecdsa.PublicKey:
		alg, ok := map[int]string{256: "ES256", 384: "ES384", 521: "ES512"}[k.Curve.Params().BitSize]
		if !ok {
			return nil, "", fmt.Errorf("%s: an ECDSA key on a curve that JWT does not know", file)
		}
		return k, alg, nil
	case ed25519.PublicKey:
		return k, "EdDSA", nil
	}
	return nil, "", fmt.Errorf("%s has a key of a kind that JWT does not know", file)
}
