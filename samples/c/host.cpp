// Answers a prompt at several thresholds, each model and answer owned by a unique_ptr: ./hostpp BUNDLE PROMPT

#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>

#include "blockstep.h"

namespace {

struct Close {
    void operator()(blockstep_model *model) const { blockstep_close(model); }
};
struct Free {
    void operator()(blockstep_answer *answer) const { blockstep_free(answer); }
};
using Model = std::unique_ptr<blockstep_model, Close>;
using Answer = std::unique_ptr<blockstep_answer, Free>;

void check(int code) {
    if (code == BLOCKSTEP_MISTAKE || code == BLOCKSTEP_PYTHON) throw std::invalid_argument(blockstep_last_error());
    if (code != BLOCKSTEP_OK) throw std::runtime_error(blockstep_last_error());
}

Model load(const std::string &bundle) {
    blockstep_model *model = nullptr;
    check(blockstep_load(bundle.c_str(), nullptr, &model));
    return Model(model);
}

Answer generate(const Model &model, const std::string &prompt, double threshold) {
    blockstep_request request{};
    request.prompt = prompt.c_str();
    request.threshold = &threshold;
    blockstep_answer *answer = nullptr;
    check(blockstep_generate(model.get(), &request, &answer));
    return Answer(answer);
}

}  // namespace

int main(int argc, char **argv) try {
    if (argc != 3) throw std::invalid_argument("expected BUNDLE and PROMPT");
    const Model model = load(argv[1]);
    const blockstep_contract *contract = nullptr;
    check(blockstep_describe(model.get(), &contract));
    std::cout << "blocks of " << contract->block << ", its own threshold " << contract->threshold << "\n";
    for (double threshold : {1.0, 0.9, 0.5}) {
        const Answer answer = generate(model, argv[2], threshold);
        std::cout << "-- " << threshold << ": " << answer->forwards << " forward passes\n"
                  << std::string(answer->text, answer->text_length) << "\n";
    }
    if (!std::cout.flush()) { // a full disk, say: an answer that is cut must not look whole
        std::cerr << "error: the output cannot be written\n";
        return 2;
    }
    return 0;
} catch (const std::invalid_argument &error) { // the user can mend it
    std::cerr << "error: " << error.what() << "\n";
    return 2;
} catch (const std::exception &error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
}
